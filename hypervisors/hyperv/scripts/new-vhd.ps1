# Makes a disk. { operation, path, partial, kind, size, block_size, sector_size, parent }
# kind: Fixed, Dynamic or Differencing. A differencing one has its parent's sizes: size and the others are null.
# It is made as `partial` and then gets its name. The record tells a later run whether a file of that name is its own.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    if ($argument.operation -notmatch '^[0-9A-Za-z-]{1,64}$') { throw 'StorageAgent.InvalidOperation' }
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $folder = Join-Path -Path $root -ChildPath $argument.operation
    $file = Join-Path -Path $folder -ChildPath 'record.json'
    $draft = Join-Path -Path $folder -ChildPath 'record.new'
    $record = $null
    if (Test-Path -LiteralPath $file) { $record = Get-Content -LiteralPath $file -Raw | ConvertFrom-Json }
    if ($null -eq $record) {
        if (Test-Path -LiteralPath $argument.path) { throw 'StorageAgent.DiskExists' }
        $null = New-Item -ItemType Directory -Path $folder -Force
        $record = @{ kind = 'disk'; path = $argument.path; partial = $argument.partial; job = $null }
        $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
        Move-Item -LiteralPath $draft -Destination $file -Force
    }
    elseif ($record.path -ne $argument.path) { throw 'StorageAgent.OperationReused' }
    if (-not (Test-Path -LiteralPath $argument.path)) {
        if (Test-Path -LiteralPath $argument.partial) { Remove-Item -LiteralPath $argument.partial -Force }
        if ($argument.kind -eq 'Differencing') {
            $null = New-VHD -Path $argument.partial -ParentPath $argument.parent -Differencing
        }
        elseif ($argument.kind -eq 'Fixed') {
            $sizes = @{ SizeBytes = $argument.size; LogicalSectorSizeBytes = $argument.sector_size }
            $null = New-VHD -Path $argument.partial -Fixed @sizes
        }
        else {
            $sizes = @{ SizeBytes = $argument.size; LogicalSectorSizeBytes = $argument.sector_size }
            $null = New-VHD -Path $argument.partial -Dynamic -BlockSizeBytes $argument.block_size @sizes
        }
        Move-Item -LiteralPath $argument.partial -Destination $argument.path
    }
    $disk = Get-VHD -Path $argument.path
    $result = @{
        path = $disk.Path
        format = [string]$disk.VhdFormat
        kind = [string]$disk.VhdType
        size = $disk.Size
        file_size = $disk.FileSize
        minimum_size = $disk.MinimumSize
        block_size = $disk.BlockSize
        sector_size = $disk.LogicalSectorSize
        parent = $disk.ParentPath
        disk_id = $disk.DiskIdentifier
        attached = $disk.Attached
    }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
