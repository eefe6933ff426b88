# The scripts of hypervisors/hyperv/scripts on a real host. See README.md.
#Requires -RunAsAdministrator
#Requires -Modules Hyper-V

BeforeAll {
    $script:Folder = Join-Path -Path $PSScriptRoot -ChildPath '..\..\hypervisors\hyperv\scripts'
    $script:Run = [guid]::NewGuid().ToString()
    $script:Pool = Join-Path -Path $env:TEMP -ChildPath "storage-agent-test-$Run"
    $script:Machine = "storage-agent-test-$Run"
    $null = New-Item -ItemType Directory -Path $Pool
    $null = New-VM -Name $Machine -Generation 2 -MemoryStartupBytes 64MB -NoVHD -Path $Pool

    # As the agent does it: the text, and one argument in JSON.
    function Invoke-Script([string]$Name, [hashtable]$Argument = @{}) {
        $text = Get-Content -LiteralPath (Join-Path -Path $Folder -ChildPath "$Name.ps1") -Raw
        $json = ConvertTo-Json -InputObject $Argument -Compress
        $shell = [powershell]::Create()
        try {
            $output = @($shell.AddScript($text, $true).AddParameter('Json', $json).Invoke())
            $shell.Streams.Error | Should -BeNullOrEmpty
            $output.Count | Should -Be 1
            $output[0] | Should -BeOfType [string]
            ConvertFrom-Json -InputObject $output[0]
        }
        finally { $shell.Dispose() }
    }
    function Get-Result([string]$Name, [hashtable]$Argument = @{}) {
        $answer = Invoke-Script $Name $Argument
        $answer.ok | Should -BeTrue -Because ($answer | ConvertTo-Json -Compress)
        $answer.result
    }
    function Get-Refusal([string]$Name, [hashtable]$Argument = @{}) {
        $answer = Invoke-Script $Name $Argument
        $answer.ok | Should -BeFalse
        Write-Host ('{0}: id {1}, hresult 0x{2:X8}' -f $Name, $answer.id, $answer.hresult)
        $answer
    }
    function Get-Path([string]$Name) { Join-Path -Path $Pool -ChildPath $Name }
    function New-Disk([string]$Name, [string]$Operation, [hashtable]$More = @{}) {
        $argument = @{
            operation = $Operation; path = Get-Path $Name; partial = Get-Path "$Operation.partial.vhdx"
            kind = 'Dynamic'; size = 64MB; block_size = 2MB; sector_size = 512; parent = $null
        }
        foreach ($key in $More.Keys) { $argument[$key] = $More[$key] }
        Get-Result 'new-vhd' $argument
    }
    function Wait-Job([string]$Operation) {
        foreach ($second in 1..300) {
            $told = Get-Result 'get-job' @{ operation = $Operation }
            if ($told.state -ne 'running') { return $told }
            Start-Sleep -Seconds 1
        }
    }
    function Write-Disk([string]$Path, [int64]$Offset, [byte]$Value) {
        $disk = Mount-VHD -Path $Path -NoDriveLetter -Passthru | Get-Disk
        try {
            $stream = [System.IO.File]::Open("\\.\PhysicalDrive$($disk.Number)", 'Open', 'ReadWrite', 'ReadWrite')
            $null = $stream.Seek($Offset, 'Begin')
            $piece = , $Value * 1048576
            $stream.Write($piece, 0, $piece.Length)
            $stream.Dispose()
        }
        finally { Dismount-VHD -Path $Path }
    }
    function Get-DiskDigest([string]$Path) {
        $disk = Mount-VHD -Path $Path -NoDriveLetter -ReadOnly -Passthru | Get-Disk
        try {
            $stream = [System.IO.File]::Open("\\.\PhysicalDrive$($disk.Number)", 'Open', 'Read', 'ReadWrite')
            $buffer = New-Object -TypeName byte[] -ArgumentList $disk.Size
            $read = 0
            while ($read -lt $buffer.Length) {
                $read += $stream.Read($buffer, $read, [Math]::Min(1048576, $buffer.Length - $read))
            }
            $stream.Dispose()
            [BitConverter]::ToString([System.Security.Cryptography.SHA256]::Create().ComputeHash($buffer))
        }
        finally { Dismount-VHD -Path $Path }
    }
}

AfterAll {
    Get-VM -Name $Machine | Remove-VM -Force
    Remove-Item -LiteralPath $Pool -Recurse -Force
}

Describe 'facts' {
    It 'tells what the host is' { (Get-Result 'get-host').module | Should -Not -BeNullOrEmpty }
    It 'tells what a file is' {
        $null = New-Disk 'facts.vhdx' 'facts'
        $told = Get-Result 'get-file' @{ path = Get-Path 'facts.vhdx' }
        $told.exists | Should -BeTrue
        $told.sparse | Should -BeFalse
        $told.free | Should -BeGreaterThan 0
        $null = Get-Result 'remove-operation' @{ operation = 'facts'; discard = $true }
        (Get-Result 'get-file' @{ path = Get-Path 'facts.vhdx' }).exists | Should -BeFalse
    }
    It 'refuses a file that is not there' {
        (Get-Refusal 'get-vhd' @{ path = Get-Path 'none.vhdx' }).hresult | Should -Not -Be 0
    }
    It 'sees a sparse file' {
        $null = New-Disk 'sparse.vhdx' 'sparse'
        fsutil sparse setflag (Get-Path 'sparse.vhdx')
        (Get-Result 'get-file' @{ path = Get-Path 'sparse.vhdx' }).sparse | Should -BeTrue
        $null = Get-Result 'remove-operation' @{ operation = 'sparse'; discard = $true }
    }
}

Describe 'disks' {
    It 'makes a <kind> disk once under one id' -ForEach @(@{ kind = 'Dynamic' }, @{ kind = 'Fixed' }) {
        $first = New-Disk "$kind.vhdx" $kind @{ kind = $kind }
        $first.kind | Should -Be $kind
        (New-Disk "$kind.vhdx" $kind @{ kind = $kind }).disk_id | Should -Be $first.disk_id
        $null = Get-Result 'remove-operation' @{ operation = $kind; discard = $false }
        (Get-Result 'resize-vhd' @{ path = Get-Path "$kind.vhdx"; size = 96MB }).size | Should -Be 96MB
        (Get-Result 'test-vhd' @{ path = Get-Path "$kind.vhdx" }).valid | Should -BeTrue
        (Get-Result 'delete-file' @{ path = Get-Path "$kind.vhdx" }).deleted | Should -BeTrue
    }
    It 'converts and merges a chain' {
        $null = New-Disk 'base.vhdx' 'base'
        Write-Disk (Get-Path 'base.vhdx') 8MB 1
        $null = New-Disk 'child.vhdx' 'child' @{ kind = 'Differencing'; parent = Get-Path 'base.vhdx'; size = $null }
        Write-Disk (Get-Path 'child.vhdx') 16MB 2
        $digest = Get-DiskDigest (Get-Path 'child.vhdx')
        $convert = @{
            operation = 'convert'; source = Get-Path 'child.vhdx'; destination = Get-Path 'new.vhdx'
            partial = Get-Path 'new.convert.partial.vhdx'; kind = 'Dynamic'; block_size = 2MB
        }
        foreach ($time in 1..2) { $null = Get-Result 'start-convert-vhd' $convert }
        (Wait-Job 'convert').state | Should -Be 'completed'
        Get-DiskDigest (Get-Path 'new.vhdx') | Should -Be $digest
        $merge = @{ operation = 'merge'; path = Get-Path 'child.vhdx'; destination = Get-Path 'base.vhdx' }
        foreach ($time in 1..2) { $null = Get-Result 'start-merge-vhd' $merge }
        (Wait-Job 'merge').state | Should -Be 'completed'
        Get-DiskDigest (Get-Path 'base.vhdx') | Should -Be $digest
        foreach ($operation in 'base', 'child', 'convert', 'merge') {
            (Get-Result 'remove-operation' @{ operation = $operation; discard = $false }).gone | Should -BeTrue
        }
        (Get-Result 'get-operations').operations | Should -BeNullOrEmpty
    }
    It 'refuses a parent that was written to, unless told' {
        $null = New-Disk 'parent.vhdx' 'parent'
        $null = New-Disk 'orphan.vhdx' 'orphan' @{ kind = 'Differencing'; parent = Get-Path 'parent.vhdx'; size = $null }
        Write-Disk (Get-Path 'parent.vhdx') 8MB 3
        (Get-Result 'test-vhd' @{ path = Get-Path 'orphan.vhdx' }).valid | Should -BeFalse
        $anew = @{ path = Get-Path 'orphan.vhdx'; parent = Get-Path 'parent.vhdx'; ignore_mismatch = $false }
        $null = Get-Refusal 'set-vhd-parent' $anew
        $anew.ignore_mismatch = $true
        $null = Get-Result 'set-vhd-parent' $anew
        (Get-Result 'test-vhd' @{ path = Get-Path 'orphan.vhdx' }).valid | Should -BeTrue
        foreach ($operation in 'parent', 'orphan') { $null = Get-Result 'remove-operation' @{ operation = $operation; discard = $true } }
    }
}

Describe 'machines' {
    It 'attaches, makes checkpoints, goes back, merges, detaches' {
        $null = New-Disk 'disk.vhdx' 'disk'
        $null = Get-Result 'remove-operation' @{ operation = 'disk'; discard = $false }
        $attach = @{ vm = $Machine; path = Get-Path 'disk.vhdx'; controller = 'SCSI'; number = $null; location = $null }
        $place = Get-Result 'attach-disk' $attach
        (Get-Result 'attach-disk' $attach).location | Should -Be $place.location
        $path = Get-Path 'disk.vhdx'
        @((Get-Result 'find-machines' @{ path = $path }).machines | Where-Object { $_.vm -eq $Machine })[0].chain | Should -Be @($path)
        $first = Get-Result 'new-checkpoint' @{ vm = $Machine; name = "storage-agent $Run" }
        (Get-Result 'new-checkpoint' @{ vm = $Machine; name = "storage-agent $Run" }).id | Should -Be $first.id
        $first.disks[0].path | Should -Be (Get-Path 'disk.vhdx')
        (Get-Result 'get-disks' @{ vm = $Machine }).disks[0].path | Should -BeLike '*.avhdx'
        $chain = @((Get-Result 'find-machines' @{ path = $path }).machines | Where-Object { $_.vm -eq $Machine })[0].chain
        $chain.Count | Should -Be 2
        $chain[-1] | Should -Be $path
        $null = Get-Result 'restore-checkpoint' @{ vm = $Machine; checkpoint = $first.id }
        (Get-Result 'remove-checkpoint' @{ vm = $Machine; checkpoint = $first.id }).removed | Should -BeTrue
        (Get-Result 'remove-checkpoint' @{ vm = $Machine; checkpoint = $first.id }).removed | Should -BeFalse
        while ((Get-Result 'get-checkpoints' @{ vm = $Machine }).merging) { Start-Sleep -Seconds 1 }
        (Get-Result 'get-disks' @{ vm = $Machine }).disks[0].path | Should -Be (Get-Path 'disk.vhdx')
        (Get-Result 'detach-disk' @{ vm = $Machine; path = Get-Path 'disk.vhdx' }).detached | Should -BeTrue
        (Get-Result 'detach-disk' @{ vm = $Machine; path = Get-Path 'disk.vhdx' }).detached | Should -BeFalse
    }
    It 'puts an ISO in and takes it out' {
        [System.IO.File]::WriteAllBytes((Get-Path 'a.iso'), (New-Object -TypeName byte[] -ArgumentList 1MB))
        foreach ($time in 1..2) { $null = Get-Result 'set-dvd' @{ vm = $Machine; path = Get-Path 'a.iso' } }
        @((Get-Result 'get-disks' @{ vm = $Machine }).dvd_drives).Count | Should -Be 1
        $null = Get-Result 'set-dvd' @{ vm = $Machine; path = $null }
    }
    It 'refuses a machine that is not there' {
        (Get-Refusal 'get-disks' @{ vm = 'storage-agent-none' }).id | Should -Be 'StorageAgent.NoSuchMachine'
    }
}
