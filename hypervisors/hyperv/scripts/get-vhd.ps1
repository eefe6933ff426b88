# What a disk's file says of itself. { path }
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
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
